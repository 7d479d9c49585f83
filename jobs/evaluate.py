"""Fit the router, compare the systems on the held-out items, and write the report.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/evaluate.py examples/etiquette.yaml --set workspace=/shared/etiquette
"""

from culturemanager import artifacts, console, job
from culturemanager import project as assembly


def main() -> None:
    arguments = job.parser(__doc__).parse_args()
    project = assembly.load(arguments.project, arguments.set)
    with job.running() as progress:
        assembly.fit_router(project, progress)
        evaluation = assembly.evaluate(project, progress)
    console.comparison(evaluation)
    console.say(f"Report: {artifacts.report_path(project)}")


if __name__ == "__main__":
    job.finish(main)
