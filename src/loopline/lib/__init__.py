"""Small general tools that several packages share."""
