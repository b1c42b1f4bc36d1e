"""The synthetic engine: requests for text and images, spread evenly over everyday subjects, and their answers.

taxonomy     8 domains, 151 subcategories, with seeds  ->  requests
expand       more requests like the seeds, by a language model; balance: how evenly they are spread
planning     requests -> answers in words with a prompt for each image, by a language model
drawing      plans -> Documents, by a painter; or requests -> Documents, by a DuoGen model in one go
painter      the interface, and painters of this project's models
comfyui_painter   the painter that has a ComfyUI server (comfyui) run a workflow for each image
"""
