"""Training a denoiser from one model row."""
