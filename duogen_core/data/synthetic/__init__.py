"""The synthetic engine: requests for text and pictures, spread evenly over everyday subjects, and their answers.

taxonomy      8 domains, 151 subcategories, with seeds  ->  requests
expand        more requests like the seeds, by a language model (request_rules, near); balance: how evenly spread
planning      requests -> answers in words with a prompt for each picture (plans, plan_rules)
drawing       plans -> Documents, by a painter: core_painter, or comfyui_painter (comfyui, workflow)
answering     requests -> Documents in one go, by a DuoGen model
runs          the shards that drawing and answering write
"""
