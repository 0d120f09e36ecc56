"""What may be dropped: sites, scores, masks, thresholds, and the study of a method."""
