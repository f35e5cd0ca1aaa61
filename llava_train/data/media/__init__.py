"""Images and videos: sizes from headers, pixels as tiles."""
