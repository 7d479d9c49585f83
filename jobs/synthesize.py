"""Fill the workspace with training rows: queries, pages, passages, index, examples.

    RAY_AUTH_MODE=token ray job submit --address http://127.0.0.1:8265 --working-dir . -- \\
        python jobs/synthesize.py examples/etiquette.yaml --set workspace=/shared/etiquette
"""

from culturemanager import console, job
from culturemanager import project as assembly


def main() -> None:
    parser = job.parser(__doc__)
    parser.add_argument("--until", default="examples", choices=["queries", "pages", "passages", "index", "examples"],
                        help="the last stage to run")
    arguments = parser.parse_args()
    project = assembly.load(arguments.project, arguments.set)
    with job.running() as progress:
        details = assembly.synthesize(project, arguments.until, progress)
    for stage, counts in details.items():
        console.say(f"{stage}: {counts['rows']:,} rows")


if __name__ == "__main__":
    job.finish(main)
