"""Everything: synthesis, training, router, evaluation. What is complete is skipped.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/pipeline.py examples/etiquette.yaml --set workspace=/shared/etiquette
"""

from culturemanager import artifacts, console, job
from culturemanager import project as assembly


def main() -> None:
    arguments = job.parser(__doc__).parse_args()
    project = assembly.load(arguments.project, arguments.set)
    with job.running() as progress:
        outcome = assembly.run(project, progress)
    console.passed_over(outcome.passed_over, arguments.project)
    if outcome.evaluation:
        console.comparison(outcome.evaluation)
        console.say(f"Report: {artifacts.report_path(project)}")
    if outcome.left_out:
        raise outcome.left_out


if __name__ == "__main__":
    job.finish(main)
