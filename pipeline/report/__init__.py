"""The report: tables, figures, and one template."""
