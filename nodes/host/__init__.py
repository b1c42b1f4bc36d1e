"""Everything that touches ComfyUI's private side."""
