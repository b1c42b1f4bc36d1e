"""Text for the data engines: how alike two texts are, and personal data taken out of them."""
