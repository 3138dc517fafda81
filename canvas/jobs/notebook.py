"""What a notebook shows of a request: a bar while it is made, then the pictures."""

from __future__ import annotations

import sys
import warnings

from canvas.jobs.job import Job, format_progress
from canvas.request import GeneratedImage

BAR = "{desc} |{bar:24}| {percentage:3.0f} %{postfix}"


class ImageList(list[GeneratedImage]):
    """Finished pictures; as the last line of a notebook's cell they show themselves."""

    def _repr_html_(self) -> str:
        return "\n".join(picture._repr_html_() or "" for picture in self)


def wait_with_progress(job: Job) -> ImageList:
    """Wait for a job, in a notebook with a bar; interrupting the wait stops the job.

    Raises why there are no pictures.
    """
    try:
        if _in_notebook():
            _show_bar(job)
        return ImageList(job.wait())
    except KeyboardInterrupt:
        job.cancel()
        raise


def _in_notebook() -> bool:
    # Asked of what is loaded: elsewhere IPython need not even be installed.
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


def _show_bar(job: Job) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # without ipywidgets it is a bar of letters: well enough
        from tqdm.auto import tqdm
    title = job.request.prompt[:40] if job.request else job.model_key
    with tqdm(total=1.0, desc=title, bar_format=BAR, leave=False) as bar:
        for _ in job.subscribe():
            bar.n, note = format_progress(job.status, job.progress)
            bar.set_postfix_str(note)
