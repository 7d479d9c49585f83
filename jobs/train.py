"""Train the adapters whose rows or settings changed, all in one pack, and let them serve.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/train.py examples/etiquette.yaml --set workspace=/shared/etiquette
"""

from culturemanager import console, job
from culturemanager import project as assembly


def main() -> None:
    parser = job.parser(__doc__)
    parser.add_argument("--only", action="append", default=[], metavar="CULTURE", help="train only this culture; may be repeated")
    arguments = parser.parse_args()
    project = assembly.load(arguments.project, arguments.set)
    with job.running() as progress:
        versions = assembly.train(project, arguments.only, progress)
    for version in versions:
        console.say(f"{version.name}: {version.metrics['rows']:,} rows, loss {version.metrics['loss']:.3f}")
    console.passed_over(assembly.passed_over(project, versions), arguments.project)


if __name__ == "__main__":
    job.finish(main)
