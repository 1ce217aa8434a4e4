"""Where samples come from: catalogue, downloads, formats, manifest, expectations."""
