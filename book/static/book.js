// The results of a search quote the pages they found, which a browser does not allow to pages opened from a disk.
if (window.location.protocol === "file:") DOCUMENTATION_OPTIONS.SHOW_SEARCH_SUMMARY = false;
