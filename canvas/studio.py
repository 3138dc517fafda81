"""Studio, the facade over jobs, models and stored images that every front end uses."""

from __future__ import annotations

import shutil
import threading
import warnings
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL.Image import Image

from canvas import dynamic_prompts
from canvas.backends.base import Backend
from canvas.backends.remote_backends import RemoteBackends
from canvas.catalog import MODELS, Catalog, ModelSpec, get_model
from canvas.engine import memory_plan, prompts, safety, system_info
from canvas.engine.control_detectors import as_control_image, resolve_control
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_duration
from canvas.engine.image_io import flatten_alpha
from canvas.errors import CanvasError, LazyMessage, ModelCorrupted, ModelUnsupported, NotFound, ServerStopping
from canvas.guidance import ControlImage
from canvas.history.api_keys import ApiKeyStore
from canvas.history.comparisons import Comparisons
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository, UserGallery
from canvas.history.pending_jobs import PendingJob, PendingJobStore
from canvas.history.statistics import DiskUse, ModelTotals, disk_use, generation_totals
from canvas.jobs.inputs import InputResolver, TempFiles
from canvas.jobs.job import ImageList, Job, wait_with_progress
from canvas.jobs.queue import PRIVATE, PUBLIC, JobRegistry
from canvas.jobs.scheduler import CHECKER, JobScheduler
from canvas.model_status import SUGGESTED, ModelLocation, ModelStatus, best_suggestion
from canvas.models import addons, controlnets, download, ip_adapters, single_file
from canvas.models.capabilities import Capabilities
from canvas.models.download import AcceptedLicences
from canvas.models.hub_client import Hub
from canvas.models.own_models import OwnModels
from canvas.presets import PRESETS
from canvas.prompt_reading import Understanding, message_for_nothing
from canvas.request import LOCAL, LOCAL_OWNER, GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.settings import Settings
from canvas.vocabulary import vocabulary_of

# Attributes of `Studio` in version 0.1, which still work.
OLD_NAMES = {
    "store": "database",
    "gallery": "image_repository",
    "shelf": "inputs",
    "elsewhere": "remote_backends",
    "painters": "backends",
    "expand": "expand_prompt",
    "submit_all": "submit_expanded",
    "submit_each": "submit_many",
    "interrupted": "interrupted_jobs",
    "resume": "resume_job",
    "dismiss": "dismiss_job",
    "seconds_to_wait": "queue_wait",
    "offered": "available_models",
    "download": "download_model",
    "free": "unload_model",
    "remove": "delete_model",
    "bytes_on_disk": "model_bytes_on_disk",
    "bytes_of_extras": "addons_download_size",
    "model_state": "model_status",
    "prompt_fit": "token_budget",
    "collection": "user_gallery",
    "picture_path": "image_path",
}


class Studio:
    """Submits jobs, and gives access to models and stored images.

    Close it, or use it as a context manager. `hub` says where models are downloaded from, by
    default as huggingface_hub is configured. Raises StorageError if the data folder cannot be
    used, and InvalidInput for an invalid `models.toml`.
    """

    def __init__(self, settings: Settings | None = None, models: Catalog = MODELS, hub: Hub | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self._hub = hub
        self.models = Catalog(models)
        if self.settings.models_file.is_file():
            self.models.load(self.settings.models_file)
        get_model(self.settings.model, self.models)
        self.settings.make_data_dir()
        self.database = Database(self.settings.database_path)
        self.image_repository = ImageRepository(self.database, ImageStorage(self.settings.outputs_dir))
        self.image_repository.reconcile()
        self.api_keys = ApiKeyStore(self.database)
        self.comparisons = Comparisons(self.database)
        self.inputs = InputResolver(self.settings, self.image_repository, hub)
        self.temp_files = TempFiles()
        self.licences = AcceptedLicences(self.settings.data_dir)
        self.remote_backends = RemoteBackends(self.settings, hub)
        self._limits = PUBLIC if self.settings.is_public else PRIVATE
        self._jobs = JobRegistry()
        self._jobs_by_node: Counter[tuple[str, str]] = Counter()
        self._count_lock = threading.Lock()
        self._pending_jobs = PendingJobStore(self.database)
        self._closing = False
        self._scheduler = JobScheduler(
            self.settings,
            self.models,
            self.remote_backends,
            save_image=self._save_image,
            record_event=self.database.save_model_event,
            load_inputs=self.inputs.load_inputs,
            hub=hub,
        )
        self.own_models = OwnModels(
            self.models, self.settings.models_file, self.settings.model, hub, allowed=not self.settings.is_public
        )

    if not TYPE_CHECKING:  # type checkers accept the present names only

        def __getattr__(self, name: str) -> Any:
            if name not in OLD_NAMES:
                raise AttributeError(f"'Studio' object has no attribute {name!r}")
            warnings.warn(f"Studio.{name} is now Studio.{OLD_NAMES[name]}", DeprecationWarning, stacklevel=2)
            return getattr(self, OLD_NAMES[name])

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop, wait for the threads and close the database."""
        self.stop()
        self._scheduler.close()
        self.database.close()

    def stop(self) -> None:
        """Refuse new jobs and end the present ones with ServerStopping; waits for nothing.

        Unfinished jobs are `interrupted_jobs` after the next start.
        """
        self._closing = True
        message = LazyMessage("The server is shutting down. After its restart the page offers to resume your job.")
        for job in self._jobs.for_owner():
            if not job.cancelled.is_set():  # otherwise its owner does not want it any more
                job.update(status="cancelled", error=ServerStopping(message))  # before a worker sees the event
                job.cancelled.set()

    # Jobs

    def submit(self, request: GenerationRequest, owner: str = LOCAL_OWNER, client: str = "python") -> Job:
        """Queue a request as one job, with the images of all prompts that a dynamic prompt stands for.

        Raises InvalidInput, QueueFull, ContentBlocked or ConsentRequired.
        """
        requests = self.expand_prompt(request)
        return self._submit([(request if requests[1:] else None, requests)], owner, client)[0]

    def expand_prompt(self, request: GenerationRequest) -> list[GenerationRequest]:
        """The requests that dynamic prompts stand for; see `dynamic_prompts.expand`."""
        folder = self.settings.wildcards_dir
        pairs = dynamic_prompts.expand_pairs(request.prompt, request.negative_prompt, folder)
        return [replace(request, prompt=prompt, negative_prompt=negative) for prompt, negative in pairs]

    def submit_expanded(
        self, request: GenerationRequest, owner: str = LOCAL_OWNER, client: str = "python"
    ) -> list[Job]:
        return self.submit_many(self.expand_prompt(request), owner, client)

    def submit_many(
        self, requests: list[GenerationRequest], owner: str = LOCAL_OWNER, client: str = "python"
    ) -> list[Job]:
        """Queue each request as a job, or none; raises what `submit` raises. Prompts are not expanded."""
        return self._submit([(None, [request]) for request in requests], owner, client)

    def _submit(
        self, groups: list[tuple[GenerationRequest | None, list[GenerationRequest]]], owner: str, client: str
    ) -> list[Job]:
        """Queue a job for each group: the dynamic request, if it is one, and what it stands for."""
        self._limits.check_queue(owner, self._unfinished_owners(), sum(len(requests) for _, requests in groups))
        accepted: list[tuple[Job, bool]] = []
        for dynamic, requests in groups:
            spec = self._complete_spec(requests[0])
            resolved = [self._resolve(request, spec, owner) for request in requests]
            local = [request for request in resolved if request.backend == LOCAL]
            missing = {name for request in local for name in self._scheduler.missing(spec, request)}
            if missing - {CHECKER}:  # the checker is the server's own requirement
                self._limits.check_download(spec.key)
            if "model" in missing:
                self.licences.check(spec)
            job = Job(owner, "generate", spec.key, resolved[0], client, on_finish=self._on_job_finished)
            job.requests, job.dynamic_request = tuple(resolved), dynamic
            accepted.append((job, not missing))
        self._register(owner, [job for job, _ in accepted])
        for job, ready in accepted:
            self._scheduler.put(job, ready=ready)
        return [job for job, _ in accepted]

    def _complete_spec(self, request: GenerationRequest) -> ModelSpec:
        """The model of a request; the defaults that its entry lacks are read once."""
        spec = get_model(request.model_key, self.models)
        if spec.unset and request.backend == LOCAL:
            spec = self.models[spec.key] = download.complete_spec(spec, hub=self._hub)
        capabilities = self.model_capabilities(spec.key) if request.backend == LOCAL else None
        if capabilities is not None and spec.scheduler not in capabilities.schedulers:
            return replace(spec, scheduler=capabilities.schedulers[0])
        return spec

    def _resolve(self, request: GenerationRequest, spec: ModelSpec, owner: str) -> GenerationRequest:
        if self.settings.safety_level != "off":
            safety.check_prompt(request.prompt)
        capabilities = self.model_capabilities(spec.key) if request.backend == LOCAL else None
        request = self.inputs.resolve_guidance(request, spec, capabilities, owner)
        resolved = self.inputs.resolve_request(request, spec, owner)
        self.remote_backends.check(resolved, spec, owner)
        self._limits.check(resolved)
        return resolved

    def _register(self, owner: str, jobs: list[Job]) -> None:
        """Check the limits and register the jobs in one step, which no other thread can come between."""
        try:
            with self.database.transaction():
                self._limits.check_queue(owner, self._unfinished_owners(), sum(len(job.requests) for job in jobs))
                for job in jobs:
                    self._pending_jobs.add(PendingJob(job.id, owner, job.resumable_request, job.created_at))
                    self._jobs.add(job)
                self._refuse_if_closing()
        except BaseException:
            for job in jobs:
                self._jobs.remove(job)
            raise

    def _unfinished_owners(self) -> list[str]:
        """The owner of each unfinished request."""
        unfinished = [job for job in self._jobs.for_owner() if not job.finished]
        return [owner for job in unfinished for owner in [job.owner] * max(1, len(job.requests))]

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise ServerStopping(LazyMessage("The server is shutting down. Try again after its restart."))

    def generate(self, request: GenerationRequest, owner: str = LOCAL_OWNER) -> ImageList:
        """Submit a request and wait; returns the saved images or raises the job's error."""
        return wait_with_progress(self.submit(request, owner))

    def download_model(self, model_key: str, owner: str = LOCAL_OWNER) -> Job:
        """Download a model without loading it; raises ContentBlocked on a public server.

        Raises ConsentRequired if its licence needs `accept_licence`.
        """
        spec = get_model(model_key, self.models)
        self._limits.check_download(spec.key)
        self.licences.check(spec)
        job = Job(owner, "download", model_key)
        self._jobs.add(job)
        self._refuse_if_closing()
        self._scheduler.put(job, ready=False)
        return job

    def accept_licence(self, model_key: str) -> None:
        """Record that the owner of this computer agrees to the licence of a model."""
        spec = get_model(model_key, self.models)
        self._limits.check_download(spec.key)
        self.licences.accept(spec)

    def owns_data(self, owner: str) -> bool:
        """Whether an owner has images, jobs or comparisons."""
        return self.database.has_owner(owner)

    def interrupted_jobs(self, owner: str) -> list[PendingJob]:
        """The owner's jobs that an earlier process did not finish."""
        return self._pending_jobs.orphaned(owner)

    def resume_job(self, job_id: str, owner: str) -> Job:
        """Submit an interrupted job again; raises NotFound."""
        job = self.submit(self._pending_jobs.get(job_id, owner).request, owner, "page")
        self._pending_jobs.remove(job_id)
        return job

    def dismiss_job(self, job_id: str, owner: str) -> None:
        """Delete an interrupted job; raises NotFound."""
        self._pending_jobs.remove(self._pending_jobs.get(job_id, owner).id)

    def jobs(self, owner: str | None) -> list[Job]:
        """The owner's jobs (None: those of all), oldest first; finished ones for an hour."""
        return self._jobs.for_owner(owner)

    def job(self, job_id: str, owner: str) -> Job:
        """A job of this owner; raises NotFound."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound(f"There is no job {job_id!r}; it may have finished long ago.")
        return job

    def clear_queue(self, owner: str) -> int:
        """Cancel all of the owner's jobs that wait; returns their number."""
        waiting = [job for job in self.jobs(owner) if job.kind == "generate" and job.status == "queued"]
        for job in waiting:
            job.cancel()
        return len(waiting)

    def forget_job(self, job_id: str, owner: str) -> None:
        """Drop a finished job of this owner from `jobs`; raises NotFound."""
        job = self.job(job_id, owner)
        if job.finished:
            self._jobs.remove(job)

    def queue_position(self, job: Job) -> int:
        """How many jobs are ahead; 0 if the job runs or is next on a free device."""
        return len(self._scheduler.jobs_ahead_of(job, self._jobs.for_owner()))

    def queue_wait(self, job: Job) -> float | None:
        """The estimated seconds until a waiting job starts; None if unknown."""
        seconds = 0.0
        estimates: dict[object, float | None] = {}  # hundreds may wait, most of them alike
        for other in self._scheduler.jobs_ahead_of(job, self._jobs.for_owner()):
            cost_key = other.request.cost_key if other.request else None
            if other.request and cost_key not in estimates:
                estimates[cost_key] = self.estimate(other.request)
            if (estimate := estimates.get(cost_key)) is None:
                return None
            estimate *= max(1, len(other.requests))
            done = other.progress.fraction if isinstance(other.progress, ProgressUpdate) else 0.0
            seconds += estimate * (1 - done)
        return seconds / max(1, len(self._scheduler.usable_backends))

    def _on_job_finished(self, job: Job) -> None:
        if job.node:
            with self._count_lock:
                self._jobs_by_node[job.node, job.status] += 1
        if not isinstance(job.error, ServerStopping):
            self._pending_jobs.remove_eventually(job.id)

    def _save_image(self, image: GeneratedImage, job: Job) -> GeneratedImage:
        parent_id = self.inputs.parent_id(image.request, job.owner)
        if (reading := self.understanding(image.request)) and reading.nothing_known:
            image = replace(image, notes=(*image.notes, str(self.advice_for_nothing())))
        saved = self.image_repository.save(replace(image, owner=job.owner, client=job.client, parent_id=parent_id))
        self.comparisons.add_image(saved)
        return saved

    # Device and models

    @property
    def device(self) -> Device:
        """The device with its dtype; detected by a short measurement on first use."""
        usable = self._scheduler.usable_backends
        if not usable:
            raise CanvasError(LazyMessage("No worker has joined the cluster yet. Start a node with Ray, or wait."))
        return self.device_if_known or usable[0].device

    @property
    def device_if_known(self) -> Device | None:
        """The device if it is already detected; never waits."""
        return self._scheduler.device_if_known

    @property
    def backends(self) -> list[Backend]:
        """The local backends: one in this process, several workers, or the present ones of a cluster."""
        return self._scheduler.backends

    def models_of(self, backend: Backend) -> list[str]:
        """The keys of the models that a backend holds in memory."""
        return [key for key, spec in self.models.items() if any(backend.is_loaded(spec, preset) for preset in PRESETS)]

    @property
    def jobs_by_node(self) -> dict[tuple[str, str], int]:
        """The number of jobs that have finished since the start, by node and status."""
        with self._count_lock:
            return dict(self._jobs_by_node)

    def warm_up(self, *, wait: bool = False) -> None:
        """Detect the device and load the default model, in the background unless `wait`; not after `stop`."""
        if self._closing:  # a timer of the page calls this
            return
        self._scheduler.warm_up(get_model(self.settings.model, self.models), wait=wait)

    @property
    def available_models(self) -> list[str]:
        """The keys of the models to choose from: on a public server those on disk."""
        allow, find_local = self._limits.allow_downloads, self._scheduler.find_local
        return [key for key, spec in self.models.items() if allow or find_local(spec)]

    def is_on_disk(self, model_key: str) -> bool:
        """Whether a model is complete on this computer; makes no request."""
        return self._scheduler.find_local(get_model(model_key, self.models)) is not None

    def model_status(self, model_key: str, *, ask_hub: bool = False) -> ModelStatus:
        """Where a model is and what using it takes; the exact download size with `ask_hub`."""
        spec = get_model(model_key, self.models)
        location: ModelLocation = "hub"
        missing_bytes = None
        if self.is_loaded(model_key):
            location = "memory"
        elif self._scheduler.find_local(spec) is not None:
            location = "disk"
        elif ask_hub:
            missing_bytes = download.plan_download(spec, hub=self._hub).missing_bytes
        seconds = self.estimate(GenerationRequest("…", model_key=model_key))
        free_bytes = shutil.disk_usage(self.settings.data_dir).free
        memory = self._memory_text(spec)
        return ModelStatus(spec.key, location, missing_bytes, free_bytes, spec, seconds, memory)

    def _memory_text(self, spec: ModelSpec) -> LazyMessage | None:
        """How the model would be loaded, once the device is known and its files are there."""
        device, local = self.device_if_known, self._scheduler.find_local(spec)
        if device is None or local is None or spec.is_local:
            return None
        try:
            plan = memory_plan.plan_local(
                spec, local, device, quantization=self.settings.quantization, offload=self.settings.offload
            )
        except CanvasError as error:  # what models.toml or a setting asks for is not possible
            return LazyMessage("{reason}", reason=error.args[0])
        return plan.text

    def model_capabilities(self, model_key: str) -> Capabilities | None:
        """What acts with a model that is on disk, and its tasks; None before the download."""
        spec = get_model(model_key, self.models)
        try:
            local = self._scheduler.find_local(spec)
            return single_file.read_local(local.path, spec.name) if local else None
        except (ModelCorrupted, ModelUnsupported):
            return None  # using the model raises the error

    @property
    def instruction_models(self) -> list[str]:
        """The keys of the models on disk that edit an image by instruction."""
        capabilities = {key: self.model_capabilities(key) for key in self.models}
        return [key for key, found in capabilities.items() if found is not None and found.edits_by_instruction]

    def is_loaded(self, model_key: str) -> bool:
        """Whether a model is in memory; never waits for the database."""
        spec = get_model(model_key, self.models)
        return any(backend.is_loaded(spec) for backend in self.backends)

    def unload_model(self, model_key: str) -> bool:
        """Unload a model from memory; raises CanvasError while it generates."""
        spec = get_model(model_key, self.models)
        return any([backend.unload(spec) for backend in self.backends])

    def delete_model(self, model_key: str) -> int:
        """Delete the download of a model and return the freed bytes; its images stay."""
        self.unload_model(model_key)
        return download.remove(self.models[model_key], hub=self._hub)

    def model_bytes_on_disk(self, model_key: str) -> int:
        return download.model_bytes_on_disk(get_model(model_key, self.models), hub=self._hub)

    def addons_download_size(self, request: GenerationRequest) -> int:
        """The approximate bytes that the preset downloads once with its first image."""
        spec = get_model(request.model_key, self.models)
        missing = addons.missing(request.preset, spec, hub=self._hub)
        return sum(addons.ADDONS[name].size for name in missing)

    def usual_controlnet(self, kind: str, model_key: str) -> str:
        """The Hub id of the ControlNet that a control image of that kind gets; raises InvalidInput."""
        spec, capabilities = get_model(model_key, self.models), self.model_capabilities(model_key)
        return controlnets.usual_model(kind, controlnets.family_of(spec, capabilities), spec, capabilities)

    def usual_adapter(self, kind: str, model_key: str) -> str:
        """The name of the IP-Adapter that a reference image gets, "" if the model needs none; raises InvalidInput."""
        spec, capabilities = get_model(model_key, self.models), self.model_capabilities(model_key)
        return ip_adapters.usual_adapter(kind, controlnets.family_of(spec, capabilities), spec, capabilities)

    def control_download_size(self, kind: str, model_key: str, *, detect: bool = True) -> int:
        """The approximate bytes that a control image of that kind downloads once; raises InvalidInput."""
        name = self.usual_controlnet(kind, model_key)
        folder = controlnets.find(name, self.settings.controlnets_dir, hub=self._hub)
        size = 0 if folder else controlnets.download_size(name) or 0
        if kind == "depth" and detect and addons.find(addons.DEPTH, hub=self._hub) is None:
            size += addons.ADDONS[addons.DEPTH].size
        return size

    def reference_download_size(self, kind: str, model_key: str) -> int:
        """The approximate bytes that a reference image of that kind downloads once; raises InvalidInput."""
        name = self.usual_adapter(kind, model_key)
        return ip_adapters.download_size(name, self.settings.ip_adapters_dir, hub=self._hub) if name else 0

    def control_preview(self, image: Image, item: ControlImage) -> tuple[ControlImage, Image]:
        """The item with its kind and detection decided, and what the ControlNet sees of the image.

        Raises InvalidInput, or ModelUnavailable if the detector is not downloaded.
        """
        resolved = resolve_control(item, image)
        detector = addons.find(addons.DEPTH, hub=self._hub)
        return resolved, as_control_image(resolved, flatten_alpha(image), detector)

    def estimate(self, request: GenerationRequest) -> float | None:
        """The estimated seconds of a request once its model is loaded; None if unknown."""
        device = self.device_if_known
        if device is None or request.backend != LOCAL:
            return None
        spec = get_model(request.model_key, self.models)
        return estimate_duration(request, spec, device, self.database.recent_times)

    def enhanced_prompt(self, request: GenerationRequest) -> str:
        """The prompt with style and trigger words, as the model gets it."""
        if reading := self.understanding(request):
            return reading.prompt
        return prompts.enhance_prompt(request, get_model(request.model_key, self.models))

    def understanding(self, request: GenerationRequest) -> Understanding | None:
        """What a model with a vocabulary, as the built-in one, understands of a request; None for other models.

        Without the arrangement of the image that it edits, see `GenerationInputs.source_prompt`.
        """
        if request.backend != LOCAL or request.task == "upscale" or self.inputs.names_embedding(request):
            return None
        return prompts.understand(request, get_model(request.model_key, self.models))

    def general_model(self) -> ModelStatus | None:
        """A model for people and photos: one that is on disk, else the best to download for this computer.

        Never waits: how quick a model is counts once the device is known.
        """
        for key, spec in self.models.items():
            if vocabulary_of(spec) is None and self._scheduler.find_local(spec):
                return self.model_status(key)
        if not self._limits.allow_downloads:
            return None
        device = self.device_if_known
        memory = memory_plan.memory_of(device)[1] if device else system_info.total_memory()
        candidates = (self.model_status(key) for key in SUGGESTED if key in self.models)
        return best_suggestion(candidates, memory - memory_plan.ACTIVATION_BYTES)

    def advice_for_nothing(self) -> LazyMessage:
        """What to do about a prompt of which the built-in model knows nothing."""
        status = self.general_model()
        if status is None:
            return message_for_nothing("")
        size = status.spec.size if status.location == "hub" else ""
        return message_for_nothing(f"{status.key} ({size})" if size else status.key)

    def token_budget(self, request: GenerationRequest) -> prompts.TokenBudget:
        """Which part of the enhanced prompt the model reads."""
        spec = get_model(request.model_key, self.models)
        text = self.enhanced_prompt(request)
        if local := self._scheduler.find_local(spec):
            budget = prompts.truncate_to_limit(text, local, spec)
        else:
            budget = prompts.estimate_tokens(text)
        # With prompt weighting a long prompt is encoded in several chunks.
        return replace(budget, kept=text, truncated="") if request.prompt_weighting else budget

    # Stored images

    def recent(self, owner: str | None = LOCAL_OWNER, limit: int = 24, offset: int = 0) -> list[GeneratedImage]:
        """The owner's images (None: those of all), newest first."""
        return self.database.recent(owner, limit, offset)

    def user_gallery(self, owner: str) -> UserGallery:
        """The images of an owner; the administrator can also see those of others."""
        return UserGallery(self.image_repository, owner, sees_all=owner == self.settings.admin)

    def image(self, image_id: int, owner: str = LOCAL_OWNER) -> GeneratedImage:
        """An image that this owner may see; raises NotFound."""
        return self.user_gallery(owner).image(image_id)

    def image_path(self, filename: str, thumbnail: bool = False) -> Path:
        """The path of an image or its thumbnail by its file name, which cannot be guessed."""
        return self.image_repository.path_of(filename, thumbnail)

    def image_by_filename(self, filename: str) -> GeneratedImage:
        """The image with that file name, of any owner; raises NotFound."""
        return self.image_repository.image_by_filename(filename)

    def is_stored_image(self, path: Path) -> bool:
        return self.image_repository.is_stored(path)

    def disk_use(self) -> DiskUse:
        return disk_use(self.database, self.image_repository.storage)

    def clear_thumbnails(self) -> int:
        """Delete all thumbnails, which are recreated on demand; returns the freed bytes."""
        return self.image_repository.storage.clear_thumbnails()

    def generation_totals(self) -> list[ModelTotals]:
        """Images and seconds by model, of all owners."""
        return generation_totals(self.database)
