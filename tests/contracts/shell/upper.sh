# Reads an event's data, writes the output's. Nothing else.
tr a-z A-Z
printf ' of %s' "$CE_SUBJECT"
