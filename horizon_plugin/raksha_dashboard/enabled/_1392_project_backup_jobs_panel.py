PANEL = "backup_jobs"
PANEL_DASHBOARD = "project"
PANEL_GROUP = "data_protection"
ADD_PANEL = "raksha_dashboard.jobs.panel.Jobs"
