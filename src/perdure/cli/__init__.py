"""The ``perdure`` command."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from perdure import __version__
from perdure.cli.agents import files, show_transcript
from perdure.cli.archives import export, import_
from perdure.cli.check import check, schema
from perdure.cli.comparing import diff_
from perdure.cli.crashing import crashtest
from perdure.cli.demo import demo
from perdure.cli.encryption import key, rekey
from perdure.cli.explaining import explain
from perdure.cli.forking import fork
from perdure.cli.graph import graph
from perdure.cli.listing import ls, output, show
from perdure.cli.outcome import CTRL_C, FIX, MEANING, OK, report
from perdure.cli.pruning import pin, prune, unpin
from perdure.cli.replaying import replay
from perdure.cli.run import resume, run
from perdure.cli.stopping import cancel, pause, retry, unpause
from perdure.cli.tail import tail
from perdure.cli.waiting import answer, questions, signal
from perdure.cli.words import say
from perdure.cli.workers import submit, worker
from perdure.errors import PerdureError

_EPILOG = "\b\nExit codes:\n" + "\n".join(f"  {code:3d}  {meaning}" for code, meaning in MEANING.items())


@click.group(epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="perdure")
def cli() -> None:
    """Durable runs of AI agents and pipelines: kill one at any instant, run it again, and it goes on.

    \b
      perdure run review.py:review --input paper=paper.md   run a flow, or go on with it
      perdure ls                                            which runs there are
      perdure show RUN                                      every step of one
      perdure explain RUN                                   why each was executed or reused
      perdure tail RUN                                      watch one live
      perdure transcript RUN                                what its agents said
      perdure diff RUN RUN                                  what differs between two
      perdure resume RUN --app review.py:review             go on with one
      perdure questions                                     what runs ask people
      perdure answer RUN                                    answer one
      perdure fork RUN --after STEP                         go on from there once more, in another run
      perdure submit review.py:review -i paper=paper.md     have a worker execute it
      perdure worker --app review.py                        be one
      perdure crashtest review.py:review -i paper=paper.md  see what a crash would do to a flow
      perdure replay --app review.py                        see which stored runs new code would break

    The store is sqlite:.perdure/runs.db unless --store or PERDURE_STORE says otherwise.
    """


for _commands in (
    (run, resume, ls, show, output, tail, show_transcript, files, graph, explain, diff_),
    (questions, answer, signal, pause, unpause, retry, cancel, fork),
    (prune, pin, unpin, export, import_, check, key, rekey, schema),
    (submit, worker, crashtest, replay, demo),
):
    for _command in _commands:
        cli.add_command(_command)


def main(words: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code."""
    given = list(sys.argv[1:] if words is None else words)
    try:
        code = cli.main(given, prog_name="perdure", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except click.ClickException as error:
        error.show()
        return FIX if isinstance(error, click.UsageError) else error.exit_code
    except (KeyboardInterrupt, click.Abort):
        say("\nStopped.", err=True)
        return CTRL_C
    except BrokenPipeError:  # the reader of a pipe has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except PerdureError as error:
        return report(error, as_json="--json" in given, show_traceback="--traceback" in given)
