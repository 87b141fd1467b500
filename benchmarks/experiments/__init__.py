"""The paper's four experiments with their controls: ``make experiments`` (see docs/experiments.md)."""
