"""The one door for every front end: wishes go in, pictures come out and are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from canvas import dynamic_prompts
from canvas.backends.base import Backend
from canvas.backends.remote_backends import RemoteBackends
from canvas.catalog import MODELS, Catalog, get_model
from canvas.engine import prompts, safety
from canvas.engine.device import Device
from canvas.engine.estimate import estimate_duration
from canvas.engine.optimizations import malloc
from canvas.errors import NotFound
from canvas.history.api_keys import ApiKeyStore
from canvas.history.comparisons import Comparisons
from canvas.history.database import Database
from canvas.history.image_files import ImageStorage
from canvas.history.images import ImageRepository, UserGallery
from canvas.history.pending_jobs import PendingJob, PendingJobStore
from canvas.history.statistics import DiskUse, ModelTotals, disk_use, generation_totals
from canvas.jobs import limits
from canvas.jobs.inputs import InputResolver
from canvas.jobs.job import Job
from canvas.jobs.notebook import ImageList, wait_with_progress
from canvas.jobs.queue import JobRegistry
from canvas.jobs.scheduler import JobScheduler
from canvas.model_status import ModelLocation, ModelStatus, describe_model
from canvas.models.hub_client import Hub
from canvas.request import LOCAL, GeneratedImage, GenerationRequest, ProgressUpdate
from canvas.settings import Settings, configure_runtime_env


class Studio:
    """Joins the engine and the history; every front end makes pictures through `submit`.

    Use it as a context manager, or call `close`. Raises StorageError when the data
    folder cannot be used, InvalidInput for a wrong `models.toml`. `hub` says where models
    come from; by default what huggingface_hub takes from its environment.
    """

    def __init__(
        self,
        settings: Settings | None = None,
        models: Catalog = MODELS,
        hub: Hub | None = None,
    ) -> None:
        self.settings = settings or Settings.from_environment()
        configure_runtime_env()
        malloc.single_arena()
        self.models = Catalog(models)
        if self.settings.models_file.is_file():
            self.models.load(self.settings.models_file)
        get_model(self.settings.model, self.models)
        self.settings.make_data_dir()
        self.database = Database(self.settings.database_path)
        self.image_repository = ImageRepository(
            self.database, ImageStorage(self.settings.outputs_dir)
        )
        self.image_repository.reconcile()
        self.api_keys = ApiKeyStore(self.database)
        self.comparisons = Comparisons(self.database)
        self.inputs = InputResolver(self.settings, self.image_repository, hub)
        self._limits = limits.PUBLIC if self.settings.is_public else limits.PRIVATE
        self._jobs = JobRegistry()
        self._pending_jobs = PendingJobStore(self.database)
        self._closing = False
        self.remote_backends = RemoteBackends(self.settings, hub)
        self._scheduler = JobScheduler(
            self.settings,
            self.models,
            self.remote_backends,
            keep=self._save_image,
            record=self.database.record_download,
            gather=self.inputs.resolve_inputs,
            hub=hub,
        )

    def __enter__(self) -> Studio:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what runs, let the workers end, close the database.

        Jobs that were not done are offered to their owners at the next start.
        """
        self._closing = True
        for job in self._jobs.for_owner():
            job.cancel()
        self._scheduler.close()
        self.database.close()

    # Asking for pictures and models

    def submit(
        self, request: GenerationRequest, owner: str = "local", channel: str = "python"
    ) -> Job:
        """Queue a wish; raises InvalidInput, QueueFull or Blocked before anything is queued."""
        return self.submit_many([request], owner, channel)[0]

    def expand_prompt(self, request: GenerationRequest) -> list[GenerationRequest]:
        """The requests that a prompt with choices or lists stands for; see `combinations`."""
        prompts = dynamic_prompts.expand(request.prompt, self.settings.data_dir / "wildcards")
        return [replace(request, prompt=prompt) for prompt in prompts]

    def submit_expanded(
        self, request: GenerationRequest, owner: str = "local", channel: str = "python"
    ) -> list[Job]:
        """Queue all that `expand` gives, or nothing; raises what `submit` raises."""
        return self.submit_many(self.expand_prompt(request), owner, channel)

    def submit_many(
        self, wishes: list[GenerationRequest], owner: str = "local", channel: str = "python"
    ) -> list[Job]:
        """Queue several wishes, or nothing; raises what `submit` raises."""
        unfinished = sum(1 for job in self._jobs.for_owner(owner) if not job.finished)
        accepted: list[tuple[Job, GenerationRequest]] = []
        for asked in wishes:
            spec = get_model(asked.model_key, self.models)
            if self.settings.safety_level != "off":
                safety.check_prompt(asked.prompt)
            wish = self.inputs.resolve_request(asked, spec, owner)
            self.remote_backends.check(wish, spec, owner)
            self._limits.check(wish, unfinished + len(accepted))
            here = wish.backend == LOCAL  # the checker is the server's own affair
            if here and not self._scheduler.is_ready(spec, wish, checker=False):
                self._limits.check_download(spec.key)
            job = Job(owner, "generate", spec.key, wish, channel, on_finish=self._on_job_finished)
            accepted.append((job, wish))
        for job, wish in accepted:
            self._pending_jobs.add(PendingJob(job.id, owner, wish, job.created_at))
        return [self._start(job) for job, _ in accepted]

    def interrupted_jobs(self, owner: str) -> list[PendingJob]:
        """The owner's jobs that an earlier server did not finish; `resume` or `dismiss` them."""
        return self._pending_jobs.orphaned(owner)

    def resume_job(self, job_id: str, owner: str) -> Job:
        """Run an interrupted job again; raises NotFound when there is none."""
        job = self.submit(self._pending_jobs.get(job_id, owner).request, owner, "page")
        self._pending_jobs.remove(job_id)
        return job

    def dismiss_job(self, job_id: str, owner: str) -> None:
        """Forget an interrupted job; raises NotFound when there is none."""
        self._pending_jobs.remove(self._pending_jobs.get(job_id, owner).id)

    def _on_job_finished(self, job: Job) -> None:
        if not self._closing:
            self._pending_jobs.remove_eventually(job.id)

    def generate(self, request: GenerationRequest, owner: str = "local") -> ImageList:
        """Submit and wait; returns the kept pictures or raises the reason why there are none."""
        return wait_with_progress(self.submit(request, owner))

    def download_model(self, model_key: str, owner: str = "local") -> Job:
        """Fetch a model to the disk without loading it; raises Blocked on a public server."""
        self._limits.check_download(get_model(model_key, self.models).key)
        return self._start(Job(owner, "download", model_key))

    def _start(self, job: Job) -> Job:
        self._jobs.add(job)
        self._scheduler.put(job)
        return job

    def jobs(self, owner: str | None) -> list[Job]:
        """The owner's jobs (None: everybody's), the oldest first; ended ones for an hour."""
        return self._jobs.for_owner(owner)

    def job(self, job_id: str, owner: str) -> Job:
        """One job of this owner; raises NotFound for any other."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound(f"There is no job {job_id!r}; it may have ended long ago.")
        return job

    def queue_position(self, job: Job) -> int:
        """How many jobs are before this one; 0 when it runs or is next on a free device."""
        return len(self._scheduler.jobs_ahead_of(job, self._jobs.for_owner()))

    def queue_wait(self, job: Job) -> float | None:
        """Seconds until this job's turn, by what such jobs took; None when nothing is known."""
        seconds = 0.0
        known: dict[object, float | None] = {}  # hundreds may wait, most of them alike
        for other in self._scheduler.jobs_ahead_of(job, self._jobs.for_owner()):
            effort = other.request.cost_key if other.request else None
            if other.request and effort not in known:
                known[effort] = self.estimate(other.request)
            if (whole := known.get(effort)) is None:
                return None
            done = other.progress.fraction if isinstance(other.progress, ProgressUpdate) else 0.0
            seconds += whole * (1 - done)
        return seconds / len(self.backends)

    # What is known before a picture is made

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        return self._scheduler.device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        return self._scheduler.device_if_known

    @property
    def backends(self) -> list[Backend]:
        """Who makes pictures here: one in this process, or several workers."""
        return self._scheduler.backends

    def warm_up(self, *, wait: bool = False) -> None:
        """Find the device and load the preselected model, in the background or now."""
        self._scheduler.warm_up(get_model(self.settings.model, self.models), wait=wait)

    def unload_model(self, model_key: str) -> bool:
        """Let a loaded model go from memory; raises CanvasError while the device works."""
        return self._scheduler.unload(get_model(model_key, self.models))

    @property
    def available_models(self) -> list[str]:
        """The models that may be picked: on a public server those that need no download."""
        may, find_local = self._limits.allow_downloads, self._scheduler.find_local
        return [key for key, spec in self.models.items() if may or find_local(spec)]

    def model_bytes_on_disk(self, model_key: str) -> int:
        """What a downloaded model takes on the disk."""
        return self._scheduler.model_bytes_on_disk(get_model(model_key, self.models))

    def addons_download_size(self, request: GenerationRequest) -> int:
        """About how much its mode fetches once beside the model, with its first picture."""
        spec = get_model(request.model_key, self.models)
        return self._scheduler.addons_download_size(spec, request.preset)

    def delete_model(self, model_key: str) -> int:
        """Delete a model's download; returns the bytes won. Pictures made with it stay."""
        return self._scheduler.delete_model(get_model(model_key, self.models))

    def estimate(self, request: GenerationRequest) -> float | None:
        """Seconds that a request will take once its model is loaded; None when unknown."""
        device = self._scheduler.device_if_known
        if device is None or request.backend != LOCAL:
            return None
        spec = get_model(request.model_key, self.models)
        return estimate_duration(request, spec, device, self.database.seconds_per_step)

    def model_status(self, model_key: str, *, ask_hub: bool = False) -> ModelStatus:
        """Where a model is and what picking it means; asks the Hub for bytes only when told to."""
        spec = get_model(model_key, self.models)
        where: ModelLocation = "hub"
        missing = None
        if self._scheduler.is_loaded(spec):
            where = "memory"
        elif self._scheduler.find_local(spec) is not None:
            where = "disk"
        elif ask_hub:
            missing = self._scheduler.plan_download(spec).missing_bytes
        seconds = self.estimate(GenerationRequest("a picture", model_key=model_key))
        free = shutil.disk_usage(self.settings.data_dir).free
        return describe_model(spec, where, missing_bytes=missing, free_bytes=free, seconds=seconds)

    def enhanced_prompt(self, request: GenerationRequest) -> str:
        """The prompt as the model will get it."""
        return prompts.enhance_prompt(request, get_model(request.model_key, self.models))

    def token_budget(self, request: GenerationRequest) -> prompts.TokenBudget:
        """How much of the enhanced prompt the model can read."""
        spec = get_model(request.model_key, self.models)
        text = prompts.enhance_prompt(request, spec)
        local = self._scheduler.find_local(spec)
        fit = (
            prompts.truncate_to_limit(text, local, spec) if local else prompts.estimate_tokens(text)
        )
        # With weights a long prompt goes to the model in several parts.
        return replace(fit, kept=text, truncated="") if request.prompt_weighting else fit

    # What was made

    def recent(
        self, owner: str | None = "local", limit: int = 24, offset: int = 0
    ) -> list[GeneratedImage]:
        """The owner's pictures (None: everybody's), the newest first."""
        return self.database.recent(owner, limit, offset)

    def user_gallery(self, owner: str) -> UserGallery:
        """All that an owner made; to the administrator everybody's can be seen, too."""
        return UserGallery(self.image_repository, owner, sees_all=owner == self.settings.admin)

    def image(self, image_id: int, owner: str = "local") -> GeneratedImage:
        """One picture that this owner may see; raises NotFound for any other."""
        return self.user_gallery(owner).image(image_id)

    def image_path(self, filename: str, thumbnail: bool = False) -> Path:
        """The file of a picture or of its thumbnail, by the name that cannot be guessed."""
        return self.image_repository.path_of(filename, thumbnail)

    def image_by_filename(self, filename: str) -> GeneratedImage:
        """The image stored under a file name that cannot be guessed; raises NotFound."""
        image = self.database.image_by_filename(filename)
        if image is None:
            raise NotFound("There is no such image.")
        return image

    def is_stored_image(self, path: Path) -> bool:
        """Whether a resolved path is the file of a stored image."""
        return self.image_repository.is_stored(path)

    def disk_use(self) -> DiskUse:
        """The bytes of images, thumbnails and the database."""
        return disk_use(self.database, self.image_repository.folder)

    def clear_thumbnails(self) -> int:
        """Delete all thumbnails, which are made again when they are shown; returns the bytes."""
        return self.image_repository.folder.clear_thumbnails()

    def generation_totals(self) -> list[ModelTotals]:
        """Images and seconds by model, of all owners."""
        return generation_totals(self.database)

    def _save_image(self, image: GeneratedImage, job: Job) -> GeneratedImage:
        parent = self.inputs.parent_id(image.request, job.owner)
        return self.image_repository.save(
            replace(image, owner=job.owner, client=job.client, parent_id=parent)
        )
