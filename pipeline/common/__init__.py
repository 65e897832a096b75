"""What every room uses: errors, files, random numbers, devices, threads and processes."""
