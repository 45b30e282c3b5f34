"""Every subcommand of ``ppar-dist``: importing its module adds it to the application."""

from ppar_dist.cli import data_commands, evaluation_commands, job_commands, run_commands
from ppar_dist.cli.app import app

__all__ = ["app", "data_commands", "evaluation_commands", "job_commands", "run_commands"]
