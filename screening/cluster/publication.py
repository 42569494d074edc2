"""What the dashboard is told of a campaign: snapshots, as events of the scheduler."""

from __future__ import annotations

from typing import Final

STATUS_TOPIC: Final = "screening-status"
"""Topic of the events; the content of each is `screening.status.CampaignStatus.to_json()`."""
