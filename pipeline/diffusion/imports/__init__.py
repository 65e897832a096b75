"""Networks that others have released, read without running anything that their files ask for."""
