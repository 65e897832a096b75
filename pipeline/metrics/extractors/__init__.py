"""Feature extractors: built-in, trained by the study, or supplied by the user."""
