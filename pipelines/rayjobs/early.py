"""What a job over clips refuses before it lists them."""

from ajepa import storage
from pipelines.cli.output import open_output
from pipelines.rayjobs.plan import ClipJob, F


def refuse_other(output: str, job: ClipJob[F], overwrite: bool) -> None:
    """Refuse an output that holds something else than this job makes. Nothing is deleted yet, and what is to be
    overwritten is not read.

    Raises:
        UserError: it does, or its description is damaged.
    """
    if not (overwrite and storage.contents(output) & set(job.output.markers)):
        open_output(output, job.output)
