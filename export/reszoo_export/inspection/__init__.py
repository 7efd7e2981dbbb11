"""What a file tells about itself."""
