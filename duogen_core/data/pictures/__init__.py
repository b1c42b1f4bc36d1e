"""Pictures for the data engines: decoded in a limited process, classed, compared with each other, judged by a model."""
