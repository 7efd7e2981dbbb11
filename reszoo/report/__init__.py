"""The toolkit of reports: templates, tables and figures."""
