"""The nodes: their schemas, tooltips and checks, one file per family."""
