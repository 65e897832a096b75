"""The frame z = x0 + sigma n: schedules, parametrizations, networks, denoisers and exact denoisers."""
