"""PostTrain-Lab: post-training methods for language models, from scratch, on the Tinker API."""
