"""What every other room uses: errors, files, the terminal, text, threads, and the cache. It imports nothing heavy."""
