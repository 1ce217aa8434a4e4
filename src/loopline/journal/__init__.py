"""The journal: it stores served samples, joins the labels that come back, and exports labelled data."""
