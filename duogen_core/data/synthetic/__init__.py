"""The synthetic engine: requests that ask for text and pictures in turn, spread evenly over everyday subjects."""
