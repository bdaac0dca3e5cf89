PANEL = "protection_overview"
PANEL_DASHBOARD = "project"
PANEL_GROUP = "data_protection"
ADD_PANEL = "raksha_dashboard.overview.panel.Overview"
