"""What every room uses: errors, files written whole, the console, progress, HTML, memory of the host."""
