"""OpenVINO as an engine: a pipeline's UNet and VAE decoder as compiled graphs, on a CPU."""
