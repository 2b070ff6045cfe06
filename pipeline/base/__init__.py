"""What every room stands on: values that pass between rooms, errors, files, child processes, addresses."""
