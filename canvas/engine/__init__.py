"""The wing that makes pictures; it knows of no file that it keeps."""
