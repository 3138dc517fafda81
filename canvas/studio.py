"""The one door for every front end: wishes go in, pictures come out and are kept."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from canvas import dynamic_prompts
from canvas.backends.base import Painter
from canvas.backends.remote_backends import Elsewhere
from canvas.catalog import MODELS, Catalog, get_model
from canvas.engine import prompts, safety
from canvas.engine.device import Device
from canvas.engine.estimate import expected_seconds
from canvas.engine.optimizations import malloc
from canvas.errors import NotFound
from canvas.history.database import Store
from canvas.history.image_files import ImageFolder
from canvas.history.images import Collection, Gallery
from canvas.history.pending_jobs import UnfinishedJob, UnfinishedJobs
from canvas.jobs import limits
from canvas.jobs.inputs import Shelf
from canvas.jobs.job import Job
from canvas.jobs.notebook import Pictures, wait
from canvas.jobs.queue import JobBook
from canvas.jobs.scheduler import Workshop
from canvas.model_status import ModelState, Where, describe
from canvas.models.hub_client import Hub
from canvas.request import HERE, GeneratedImage, GenerationRequest, Step
from canvas.settings import Settings, quiet_libraries


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
        quiet_libraries()
        malloc.use_one()
        self.models = Catalog(models)
        if self.settings.models_file.is_file():
            self.models.load(self.settings.models_file)
        get_model(self.settings.model, self.models)
        self.settings.make_data_dir()
        self.store = Store(self.settings.database)
        self.gallery = Gallery(self.store, ImageFolder(self.settings.outputs))
        self.gallery.reconcile()
        self.shelf = Shelf(self.settings, self.gallery, hub)
        self._limits = limits.PUBLIC if self.settings.is_public else limits.PRIVATE
        self._jobs = JobBook()
        self._unfinished = UnfinishedJobs(self.store)
        self._closing = False
        self.elsewhere = Elsewhere(self.settings, hub)
        self._workshop = Workshop(
            self.settings,
            self.models,
            self.elsewhere,
            keep=self._keep,
            record=self.store.record_download,
            gather=self.shelf.gather,
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
        for job in self._jobs.of():
            job.cancel()
        self._workshop.close()
        self.store.close()

    # Asking for pictures and models

    def submit(
        self, request: GenerationRequest, owner: str = "local", channel: str = "python"
    ) -> Job:
        """Queue a wish; raises InvalidInput, QueueFull or Blocked before anything is queued."""
        return self.submit_each([request], owner, channel)[0]

    def expand(self, request: GenerationRequest) -> list[GenerationRequest]:
        """The requests that a prompt with choices or lists stands for; see `combinations`."""
        prompts = dynamic_prompts.expand(request.prompt, self.settings.data_dir / "wildcards")
        return [replace(request, prompt=prompt) for prompt in prompts]

    def submit_all(
        self, request: GenerationRequest, owner: str = "local", channel: str = "python"
    ) -> list[Job]:
        """Queue all that `expand` gives, or nothing; raises what `submit` raises."""
        return self.submit_each(self.expand(request), owner, channel)

    def submit_each(
        self, wishes: list[GenerationRequest], owner: str = "local", channel: str = "python"
    ) -> list[Job]:
        """Queue several wishes, or nothing; raises what `submit` raises."""
        unfinished = sum(1 for job in self._jobs.of(owner) if not job.finished)
        accepted: list[tuple[Job, GenerationRequest]] = []
        for asked in wishes:
            spec = get_model(asked.model_key, self.models)
            if self.settings.safety_level != "off":
                safety.check_prompt(asked.prompt)
            wish = self.shelf.resolve(asked, spec, owner)
            self.elsewhere.check(wish, spec, owner)
            self._limits.check(wish, unfinished + len(accepted))
            here = wish.where == HERE  # the checker is the server's own affair
            if here and not self._workshop.has_all(spec, wish, checker=False):
                self._limits.check_download(spec.key)
            job = Job(owner, "generate", spec.key, wish, channel, on_finish=self._forget)
            accepted.append((job, wish))
        for job, wish in accepted:
            self._unfinished.add(UnfinishedJob(job.id, owner, wish, job.created_at))
        return [self._start(job) for job, _ in accepted]

    def interrupted(self, owner: str) -> list[UnfinishedJob]:
        """The owner's jobs that an earlier server did not finish; `resume` or `dismiss` them."""
        return self._unfinished.interrupted(owner)

    def resume(self, job_id: str, owner: str) -> Job:
        """Run an interrupted job again; raises NotFound when there is none."""
        job = self.submit(self._unfinished.get(job_id, owner).request, owner, "page")
        self._unfinished.remove(job_id)
        return job

    def dismiss(self, job_id: str, owner: str) -> None:
        """Forget an interrupted job; raises NotFound when there is none."""
        self._unfinished.remove(self._unfinished.get(job_id, owner).id)

    def _forget(self, job: Job) -> None:
        if not self._closing:
            self._unfinished.forget(job.id)

    def generate(self, request: GenerationRequest, owner: str = "local") -> Pictures:
        """Submit and wait; returns the kept pictures or raises the reason why there are none."""
        return wait(self.submit(request, owner))

    def download(self, model_key: str, owner: str = "local") -> Job:
        """Fetch a model to the disk without loading it; raises Blocked on a public server."""
        self._limits.check_download(get_model(model_key, self.models).key)
        return self._start(Job(owner, "download", model_key))

    def _start(self, job: Job) -> Job:
        self._jobs.add(job)
        self._workshop.put(job)
        return job

    def jobs(self, owner: str | None) -> list[Job]:
        """The owner's jobs (None: everybody's), the oldest first; ended ones for an hour."""
        return self._jobs.of(owner)

    def job(self, job_id: str, owner: str) -> Job:
        """One job of this owner; raises NotFound for any other."""
        job = self._jobs.get(job_id)
        if job is None or job.owner != owner:
            raise NotFound(f"There is no job {job_id!r}; it may have ended long ago.")
        return job

    def queue_position(self, job: Job) -> int:
        """How many jobs are before this one; 0 when it runs or is next on a free device."""
        return len(self._workshop.before(job, self._jobs.of()))

    def seconds_to_wait(self, job: Job) -> float | None:
        """Seconds until this job's turn, by what such jobs took; None when nothing is known."""
        seconds = 0.0
        known: dict[object, float | None] = {}  # hundreds may wait, most of them alike
        for other in self._workshop.before(job, self._jobs.of()):
            effort = other.request.effort if other.request else None
            if other.request and effort not in known:
                known[effort] = self.estimate(other.request)
            if (whole := known.get(effort)) is None:
                return None
            done = other.progress.fraction if isinstance(other.progress, Step) else 0.0
            seconds += whole * (1 - done)
        return seconds / len(self.painters)

    # What is known before a picture is made

    @property
    def device(self) -> Device:
        """The device with its dtype; found by a short measurement at the first use."""
        return self._workshop.device

    @property
    def device_if_known(self) -> Device | None:
        """The device when it has been found already; never waits."""
        return self._workshop.device_if_known

    @property
    def painters(self) -> list[Painter]:
        """Who makes pictures here: one in this process, or several workers."""
        return self._workshop.painters

    def warm_up(self, *, wait: bool = False) -> None:
        """Find the device and load the preselected model, in the background or now."""
        self._workshop.warm_up(get_model(self.settings.model, self.models), wait=wait)

    def free(self, model_key: str) -> bool:
        """Let a loaded model go from memory; raises CanvasError while the device works."""
        return self._workshop.free(get_model(model_key, self.models))

    @property
    def offered(self) -> list[str]:
        """The models that may be picked: on a public server those that need no download."""
        may, find_local = self._limits.downloads, self._workshop.find_local
        return [key for key, spec in self.models.items() if may or find_local(spec)]

    def bytes_on_disk(self, model_key: str) -> int:
        """What a downloaded model takes on the disk."""
        return self._workshop.bytes_on_disk(get_model(model_key, self.models))

    def bytes_of_extras(self, request: GenerationRequest) -> int:
        """About how much its mode fetches once beside the model, with its first picture."""
        spec = get_model(request.model_key, self.models)
        return self._workshop.bytes_of_extras(spec, request.mode)

    def remove(self, model_key: str) -> int:
        """Delete a model's download; returns the bytes won. Pictures made with it stay."""
        return self._workshop.remove(get_model(model_key, self.models))

    def estimate(self, request: GenerationRequest) -> float | None:
        """Seconds that a request will take once its model is loaded; None when unknown."""
        device = self._workshop.device_if_known
        if device is None or request.where != HERE:
            return None
        spec = get_model(request.model_key, self.models)
        return expected_seconds(request, spec, device, self.store.seconds_per_step)

    def model_state(self, model_key: str, *, ask_hub: bool = False) -> ModelState:
        """Where a model is and what picking it means; asks the Hub for bytes only when told to."""
        spec = get_model(model_key, self.models)
        where: Where = "hub"
        missing = None
        if self._workshop.is_loaded(spec):
            where = "memory"
        elif self._workshop.find_local(spec) is not None:
            where = "disk"
        elif ask_hub:
            missing = self._workshop.plan_download(spec).missing_bytes
        seconds = self.estimate(GenerationRequest("a picture", model_key=model_key))
        free = shutil.disk_usage(self.settings.data_dir).free
        return describe(spec, where, missing_bytes=missing, free_bytes=free, seconds=seconds)

    def enhanced_prompt(self, request: GenerationRequest) -> str:
        """The prompt as the model will get it."""
        return prompts.enhance_prompt(request, get_model(request.model_key, self.models))

    def prompt_fit(self, request: GenerationRequest) -> prompts.PromptFit:
        """How much of the enhanced prompt the model can read."""
        spec = get_model(request.model_key, self.models)
        text = prompts.enhance_prompt(request, spec)
        local = self._workshop.find_local(spec)
        fit = prompts.split_at_limit(text, local, spec) if local else prompts.estimate_fit(text)
        # With weights a long prompt goes to the model in several parts.
        return replace(fit, kept=text, cut="") if request.prompt_weighting else fit

    # What was made

    def recent(
        self, owner: str | None = "local", limit: int = 24, offset: int = 0
    ) -> list[GeneratedImage]:
        """The owner's pictures (None: everybody's), the newest first."""
        return self.store.recent(owner, limit, offset)

    def collection(self, owner: str) -> Collection:
        """All that an owner made; to the administrator everybody's can be seen, too."""
        return Collection(self.gallery, owner, sees_all=owner == self.settings.admin)

    def image(self, image_id: int, owner: str = "local") -> GeneratedImage:
        """One picture that this owner may see; raises NotFound for any other."""
        return self.collection(owner).image(image_id)

    def picture_path(self, filename: str, thumbnail: bool = False) -> Path:
        """The file of a picture or of its thumbnail, by the name that cannot be guessed."""
        return self.gallery.path_of(filename, thumbnail)

    def _keep(self, image: GeneratedImage, job: Job) -> GeneratedImage:
        parent = self.shelf.parent_of(image.request, job.owner)
        return self.gallery.keep(
            replace(image, owner=job.owner, channel=job.channel, parent_id=parent)
        )
