"""From records to numbers, tables, plots and verdicts."""
