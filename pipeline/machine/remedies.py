"""What to do about a lack, in the words that doctor and others share."""

TENSORFLOW = "pip install 'model-repository-pipeline[tensorflow]'"
