"""What the nodes do: the stages of a picture, the loop's body, planned answers, answers that grow."""
