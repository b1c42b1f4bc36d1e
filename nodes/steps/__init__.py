"""What the nodes do: the stages of an image, the loop, how an answer is going, the copy of it on disk.

Here stand choices of widgets that steps act on: nodes/definitions needs them without the model code behind the steps.
"""

AS_IT_GOES, PLAN_FIRST = "as it goes", "plan first"
LIKE_LAST, LIKE_NUMBER, FIXED = "like the last image", "like image n", "fixed"
