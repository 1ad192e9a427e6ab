exec(open(__file__.rsplit('/',1)[0]+'/proto.py').read())
import ctypes as C
from pathlib import Path
from activities.bucket.records import UploadOptions
from activities.render import raster
from activities.render.measure import measure
from activities.render.pdf_file import PdfFile
f,pg=sys.argv[1].rsplit(':',1); O=UploadOptions(); pdf=PdfFile(Path(f)); m={p.number:p for p in measure(pdf,O,2000).pages}; n=int(pg)
path=f'/dev/shm/px-{Path(f).name[:2]}-{n}.raw'
buf=raster.PixelBuffer(); px=raster.draw(pdf,n,m[n].width,m[n].height,buf).pixels
open(path,'wb').write(px); print(path,m[n].width,m[n].height)
