"""What people and scripts are told: progress, logs, the table at the end, report.json."""
