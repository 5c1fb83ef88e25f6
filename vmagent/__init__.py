"""vmagent: the per-host agent that starts, holds and ends virtual machines for a site."""

__version__ = "0.1.0"
