"""Images, points and labels: reading, decoding and preparing them."""
