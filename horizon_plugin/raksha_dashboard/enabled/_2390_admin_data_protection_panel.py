PANEL = "data_protection"
PANEL_DASHBOARD = "admin"
PANEL_GROUP = "default"
ADD_PANEL = "raksha_dashboard.operators.panel.Operators"
