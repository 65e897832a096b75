"""Images, points and labels: load, decode, prepare and watch them."""
