"""The toolkit of reports: templates, tables, figures and statistics."""
